#!/bin/sh
# Builds the stand-in's package. Usage: build.sh VERSION FILE
set -eu
here=$(dirname "$0")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 0755 "$root"
install -D -m 0755 "$here/standin.py" "$root/usr/sbin/grafana"
mkdir -p "$root/usr/share/grafana" "$root/etc/grafana/provisioning/datasources" "$root/etc/grafana/provisioning/dashboards" \
    "$root/lib/systemd/system" "$root/DEBIAN"
cat >"$root/lib/systemd/system/grafana-server.service" <<'END'
[Unit]
Description=Stand-in for Grafana

[Service]
User=grafana
Group=grafana
ExecStart=/usr/sbin/grafana server --config=/etc/grafana/grafana.ini
RuntimeDirectory=grafana

[Install]
WantedBy=multi-user.target
END
cat >"$root/DEBIAN/control" <<END
Package: grafana
Version: $1
Architecture: all
Maintainer: Nobody <nobody@example.org>
Depends: python3
Description: Stand-in for Grafana, for tests only
 This is not Grafana. It answers a few requests so that the role that installs Grafana can be tested without it.
END
cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
getent passwd grafana >/dev/null || useradd --system --user-group --home-dir /usr/share/grafana --shell /usr/sbin/nologin grafana
install -d -o grafana -g grafana -m 0750 /var/lib/grafana /var/log/grafana
systemctl daemon-reload
END
chmod 0755 "$root/DEBIAN/postinst"
mkdir -p "$(dirname "$2")"
dpkg-deb --root-owner-group --build "$root" "$2" >/dev/null
