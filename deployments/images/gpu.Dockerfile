# Runs and workers of the `gpu` pool: local engines on NVIDIA's GPUs. llama.cpp is compiled for them here.
#   docker build -f deployments/images/gpu.Dockerfile -t distilflow-gpu .
#   docker run --gpus all -e PREFECT_API_URL=… -v distilflow:/data distilflow-gpu
ARG CUDA=12.8.1

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git python3-dev python3-venv
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY . /source
# Without GGML_NATIVE=OFF it would be compiled for the machine that builds the image.
RUN CMAKE_ARGS='-DGGML_CUDA=ON -DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF' \
    pip install --no-cache-dir '/source[local,team]'

FROM nvidia/cuda:${CUDA}-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 procps python3 tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH

# Datasets, what steps made, the store of answers and downloaded weights: mount a volume, or they are gone with the container.
# Ubuntu's image has a user of the id 1000 already.
RUN mkdir /data && chown ubuntu /data
USER ubuntu
WORKDIR /data
ENV DISTILFLOW_HOME=/data/.distilflow HF_HOME=/data/.huggingface \
    PREFECT_LOCAL_STORAGE_PATH=/data/.results PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30

ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "deployments", "worker", "gpu"]
