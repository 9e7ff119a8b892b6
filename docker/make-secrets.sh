#!/bin/sh
# Writes random secrets for compose.yaml into docker/secrets (not tracked by git), once.
# The containers' user is not the host's, so the files are readable by all and the folder by none
# but you; containers mount the files, not the folder.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
  echo "docker/secrets is there already; remove it to make new ones (stored data needs the old)" >&2
  exit 1
fi
umask 022
mkdir -m 0700 secrets
random() { head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; }

random > secrets/ray_token
random > secrets/postgres_password
access=$(random | cut -c1-20)
secret=$(random)
cat > secrets/aws_credentials <<END
[default]
aws_access_key_id = $access
aws_secret_access_key = $secret
END
cat > secrets/s3_identities.json <<END
{"identities": [{"name": "ple", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$access", "secretKey": "$secret"}]}]}
END
echo "docker/secrets: ray_token, postgres_password, aws_credentials, s3_identities.json"
