cat >etc/os-release <<'EOF'
NAME="Alpine Linux"
ID=alpine
VERSION_ID=3.10.9
PRETTY_NAME="Alpine Linux v3.10"
EOF
echo 3.10.9 >etc/alpine-release
