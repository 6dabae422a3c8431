#!/bin/sh
# Runs once, in an empty database: who may only look. marea_reader and its grants come with `marea migrate`; the roles
# that log in inherit them from there.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --set grafana="$(cat /run/secrets/grafana_postgres_password)" \
    --set exporter="$(cat /run/secrets/exporter_postgres_password)" <<'SQL'
CREATE ROLE marea_reader NOLOGIN;
CREATE ROLE marea_writer NOLOGIN;
CREATE ROLE marea_grafana LOGIN PASSWORD :'grafana' IN ROLE marea_reader;
CREATE ROLE marea_exporter LOGIN PASSWORD :'exporter' IN ROLE pg_monitor;
SQL
