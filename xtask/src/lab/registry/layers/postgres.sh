major=$(ls usr/lib/postgresql)
echo "PG_MAJOR=$major"
echo "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/$major/bin"
