# The environment of `make` as an image: the versions of requirements.lock and torch.lock and nothing else. Building and using it: docs/cluster.md.
FROM python:3.11-slim
COPY requirements.lock torch.lock /opt/loratory/
RUN python -m pip install --no-cache-dir --disable-pip-version-check --no-deps -r /opt/loratory/requirements.lock
RUN python -m pip install --no-cache-dir --disable-pip-version-check -r /opt/loratory/torch.lock
# Whoever it runs as may write here, as Snakemake does into its cache.
ENV HOME=/tmp
