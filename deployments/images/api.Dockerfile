# Runs and workers of the `api` pool: hosted models, no GPU.
#   docker build -f deployments/images/api.Dockerfile -t distilflow-api .
FROM python:3.12-slim

RUN apt-get update && apt-get install -y --no-install-recommends procps tini && rm -rf /var/lib/apt/lists/*

COPY . /source
RUN pip install --no-cache-dir '/source[remote,team]' && rm -rf /source

# Datasets, what steps made and the store of answers: mount a volume, or they are gone with the container.
RUN useradd --create-home --uid 1000 distilflow && mkdir /data && chown distilflow /data
USER distilflow
WORKDIR /data
ENV DISTILFLOW_HOME=/data/.distilflow PREFECT_LOCAL_STORAGE_PATH=/data/.results PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30

ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "deployments", "worker", "api"]
