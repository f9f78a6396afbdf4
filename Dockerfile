# An image for training on machines with NVIDIA GPUs. From the repository's root:
#
#     docker build --tag dalle .
#     docker run --gpus all --ipc=host --volume /data:/data dalle dalle-train-dvae --config paper/dvae --data '/data/{000..999}.tar' ...
#
# --ipc=host, for loaders hand batches over in shared memory. Several machines start it by their scheduler, one task for
# each GPU, with launch/train_prior.py in /opt/dalle (docs/scaling.md). The compilers of the -devel image are needed:
# Triton, DeepSpeed and the kernels of dalle.decoding compile at first use. Its CUDA is that of the wheels of torch in
# constraints.txt, 13.0.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu24.04

# versions of Ubuntu's packages come with the release, whose archive keeps none but the newest
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        g++ ibverbs-providers libibverbs1 openssh-client pdsh python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 dalle \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# What is large and changes seldom comes first. torch before all: DeepSpeed looks at it while it is being built.
WORKDIR /opt/dalle
COPY constraints.txt ./
RUN pip install -c constraints.txt setuptools wheel torch torchvision numpy

COPY LICENSE README.md pyproject.toml ./
COPY configs configs
COPY dalle dalle
COPY launch launch
RUN pip install --no-build-isolation -c constraints.txt ".[cluster]" \
    && rm -rf build ./*.egg-info

USER 10001
WORKDIR /home/dalle
CMD ["dalle"]
