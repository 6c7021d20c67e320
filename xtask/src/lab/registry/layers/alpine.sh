# Every applet is a symbolic link where Alpine has it.
mkdir -m 0755 bin dev etc home lib proc run sbin sys usr usr/bin usr/sbin var
mkdir -m 0700 root
mkdir -m 1777 tmp
ln -s ../tmp var/tmp
install -m 0755 "$busybox/usr/bin/busybox" bin/busybox
while read -r applet; do
  [ -e "$applet" ] || ln -s /bin/busybox "$applet"
done <"$applets"
cat >etc/passwd <<'EOF'
root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/sbin/nologin
EOF
cat >etc/group <<'EOF'
root:x:0:root
nobody:x:65534:
EOF
printf '/bin/sh\n/bin/ash\n' >etc/shells
