#!/bin/sh
# An IOC under procServ, where that is the custom of the place; systemd is the alternative.
#
#   ./procserv.sh NAME [PORT]      serves /etc/daq-ioc/NAME.toml; console: telnet localhost PORT
#
# procServ starts it again whenever it ends, and stops it by SIGTERM, which finishes a recording.
set -eu
name=${1:?which configuration: the NAME of /etc/daq-ioc/NAME.toml}
port=${2:-20000}
exec procServ --name "daq-ioc-$name" --chdir "/var/lib/daq-ioc/$name" --killsig 15 --holdoff 2 \
    --logfile "/var/log/daq-ioc-$name.log" --restrict "$port" \
    /opt/daq-ioc/bin/daq-ioc run "/etc/daq-ioc/$name.toml"
