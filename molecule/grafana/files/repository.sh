#!/bin/sh
# Makes a signed repository with the stand-in in /srv/repository, one signed by a stranger in /srv/stranger, a flat one
# in /srv/flat, and a package that is in none in /srv/single.
set -eu
here=$(dirname "$0")
export GNUPGHOME=/srv/gnupg
mkdir -p -m 0700 "$GNUPGHOME"
for name in repository stranger; do
    gpg --batch --quiet --passphrase '' --quick-generate-key "$name@example.org" ed25519 sign 2d
    folder=/srv/$name
    sh "$here/build.sh" 0.0.0+standin "$folder/pool/main/grafana_0.0.0+standin_all.deb"
    sh "$here/build.sh" 0.0.1+standin "$folder/pool/main/grafana_0.0.1+standin_all.deb"
    cd "$folder"
    mkdir -p dists/stable/main/binary-amd64 dists/stable/main/binary-arm64
    for architecture in amd64 arm64; do
        apt-ftparchive --arch $architecture packages pool >dists/stable/main/binary-$architecture/Packages
    done
    apt-ftparchive -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Components=main \
        -o "APT::FTPArchive::Release::Architectures=amd64 arm64" release dists/stable >Release
    mv Release dists/stable/Release
    gpg --batch --quiet --local-user "$name@example.org" --clearsign --output dists/stable/InRelease dists/stable/Release
    gpg --batch --quiet --armor --export "$name@example.org" >key.asc
    gpg --batch --with-colons --list-keys "$name@example.org" | awk -F: '/^fpr/ {print $10; exit}' >fingerprint
done
# Signed by the stranger, offered with the key of the other.
cp /srv/repository/key.asc /srv/stranger/other.asc
sh "$here/build.sh" 0.0.2+standin /srv/single/grafana.deb
# A flat one: no suites, no components.
mkdir -p /srv/flat
cd /srv/flat
cp /srv/repository/pool/main/*.deb .
apt-ftparchive packages . >Packages
apt-ftparchive release . >/srv/flat.release
mv /srv/flat.release Release
gpg --batch --quiet --local-user repository@example.org --clearsign --output InRelease Release
