#!/bin/sh
# What the demo service of compose.yaml does: prepares a generated click log in the S3 store, trains
# on both workers, registers the model. Runs in the project's image, submits to the head.
set -eu
cluster=${CLUSTER:-http://head:8265}

python -m jobs.submit prepare --address "$cluster" --needs AWS_SHARED_CREDENTIALS_FILE \
  clicklog --rows "${ROWS:-200000}" --if-missing --output s3://ple/data/clicklog

exec python -m jobs.submit train --address "$cluster" --needs AWS_SHARED_CREDENTIALS_FILE \
  --config configs/demo.yaml data.path=s3://ple/data/clicklog storage.path=s3://ple/runs \
  mlflow.tracking_uri=http://mlflow:5000 train.workers=2
