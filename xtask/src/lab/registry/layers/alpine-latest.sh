cat >etc/os-release <<'EOF'
NAME="Alpine Linux"
ID=alpine
VERSION_ID=3.22.2
PRETTY_NAME="Alpine Linux v3.22"
EOF
echo 3.22.2 >etc/alpine-release
