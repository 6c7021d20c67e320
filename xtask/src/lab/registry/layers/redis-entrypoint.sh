chroot . install -d -o redis -g redis /data
cat >usr/local/bin/docker-entrypoint.sh <<'EOF'
#!/bin/sh
# Options and a configuration file are meant for redis-server, which must not run as root.
set -e
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
  set -- redis-server "$@"
fi
if [ "$1" = redis-server ]; then
  # Nobody can reach it but by the container's own network.
  shift
  set -- redis-server "$@" --protected-mode no
  if [ "$(id -u)" = 0 ]; then
    set -- setpriv --reuid=redis --regid=redis --init-groups -- "$@"
  fi
fi
exec "$@"
EOF
chmod 0755 usr/local/bin/docker-entrypoint.sh
