echo "NODE_VERSION=$(chroot . dpkg-query --show --showformat '${source:Upstream-Version}' nodejs | sed 's/[+~].*//')"
