#!/bin/sh
# Starts MLflow's tracking server: runs in PostgreSQL, artifacts in S3, a password for every request.
# Arguments are passed on to `mlflow server`. README.md, beside this file, explains the variables.
set -eu

num_missing=0
for name in \
    PGHOST PGDATABASE PGUSER PGPASSWORD \
    MLFLOW_ARTIFACTS_DESTINATION AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY \
    MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
do
    if [ -z "$(printenv "$name" || true)" ]; then
        echo "error: $name is not set or not exported; see deploy/README.md" >&2
        num_missing=$((num_missing + 1))
    fi
done
[ "$num_missing" -eq 0 ] || exit 2
case $MLFLOW_ARTIFACTS_DESTINATION in
    s3://?*) ;;
    *) echo "error: MLFLOW_ARTIFACTS_DESTINATION: not an S3 address; set it to s3://BUCKET or s3://BUCKET/FOLDER" >&2
       exit 2 ;;
esac

# An address without host, user and password: PostgreSQL's client library reads PGHOST and the others itself, so that
# the password is in no command line, no log and no error text.
export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg://
MLFLOW_AUTH_CONFIG_PATH=$(dirname "$(realpath "$0")")/basic_auth.ini
export MLFLOW_AUTH_CONFIG_PATH
export MLFLOW_DISABLE_TELEMETRY=true
# Jobs serve language models; a process for them would run beside the server.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --app-name basic-auth --serve-artifacts "$@"
