# Every applet is a hard link in one folder.
mkdir bin
install -m 0755 "$busybox/usr/bin/busybox" bin/busybox
while read -r applet; do
  [ -e "bin/${applet##*/}" ] || ln bin/busybox "bin/${applet##*/}"
done <"$applets"
