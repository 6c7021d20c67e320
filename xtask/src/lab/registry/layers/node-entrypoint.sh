chroot . useradd --create-home --shell /bin/bash --uid 1000 --user-group node
cat >usr/local/bin/docker-entrypoint.sh <<'EOF'
#!/bin/sh
# An option or a word that is no program is meant for node.
set -e
if [ "${1#-}" != "$1" ] || ! command -v "$1" >/dev/null; then
  set -- node "$@"
fi
exec "$@"
EOF
chmod 0755 usr/local/bin/docker-entrypoint.sh
