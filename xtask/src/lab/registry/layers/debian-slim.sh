# What a container needs no part of; removed here, so that the layer has whiteouts of files and of a folder.
rm -rf etc/motd var/cache/debconf/templates.dat-old usr/share/lintian
# A folder that hides the one below it instead of being merged with it.
rm -rf etc/update-motd.d
mkdir etc/update-motd.d
printf '#!/bin/sh\nuname -snrvm\n' >etc/update-motd.d/10-uname
chmod 0755 etc/update-motd.d/10-uname
