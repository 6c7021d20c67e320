mkdir -m 0755 dev etc home proc sys usr usr/bin usr/sbin var var/tmp
mkdir -m 0700 root
mkdir -m 1777 tmp
chmod 1777 var/tmp
ln -s ../../bin/env usr/bin/env
cat >etc/passwd <<'EOF'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
EOF
cat >etc/group <<'EOF'
root:x:0:
daemon:x:1:
nobody:x:65534:
EOF
