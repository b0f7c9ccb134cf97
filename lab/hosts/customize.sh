#!/bin/sh
# Turns mmdebstrap's fresh root ($1) into a host. Arguments: $1 root, $2 overlay directory, $3 directory of extra CAs.
set -eu
root=$1 overlay=$2 authorities=$3

(cd "$overlay" && find . -type f) | while read -r file; do
    mode=644
    [ ! -x "$overlay/$file" ] || mode=755
    install -D -o root -g root -m "$mode" "$overlay/$file" "$root/$file"
done
chmod 440 "$root/etc/sudoers.d/admin"

mkdir -p "$root/usr/local/share/ca-certificates"
find "$authorities" -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \;
chroot "$root" update-ca-certificates

# As in Debian's cloud images: one administrator, no password anywhere, a key and a name of its own at first boot.
chroot "$root" useradd --create-home --shell /bin/bash --groups sudo,adm,systemd-journal admin
chroot "$root" passwd --lock admin
chroot "$root" passwd --lock root
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"

# pam_loginuid ends every SSH login where the kernel lets no container set an audit identity.
sed -i 's/^session\s\+required\s\+pam_loginuid.so/session optional pam_loginuid.so/' "$root/etc/pam.d/sshd"

# Nothing to type at: the consoles would only restart for ever.
chroot "$root" systemctl mask console-getty.service getty.target
chroot "$root" systemctl enable ssh.service ssh-host-keys.service user-data.service own-mounts.service
chroot "$root" systemctl set-default multi-user.target

# sudo drops its caller's environment; the host's own (/etc/environment) holds in every session, as on Ubuntu.
for service in sudo sudo-i; do
    echo 'session required pam_env.so readenv=1' >> "$root/etc/pam.d/$service"
done
