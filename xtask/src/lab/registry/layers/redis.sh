echo "REDIS_VERSION=$(chroot . dpkg-query --show --showformat '${source:Upstream-Version}' redis-server)"
