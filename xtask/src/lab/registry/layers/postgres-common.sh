# The package makes a database when it is installed; the entry point makes one when the container is started.
sed -i 's/^#*create_main_cluster .*/create_main_cluster = false/' etc/postgresql-common/createcluster.conf
