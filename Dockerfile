# The Space in a container, on a CPU with the embedded model:
#   docker build -t showo . && docker run -p 7860:7860 showo
# For a GPU, give the index of that torch build: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
COPY pipelines pipelines
COPY conversion conversion
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt torch --index-url "$TORCH_INDEX" \
    && /venv/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[app]"

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 showo
COPY --from=build --chown=root:root /venv /venv
COPY app.py /home/showo/app.py
USER showo
WORKDIR /home/showo
ENV GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860 PYTHONUNBUFFERED=1
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["/venv/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
CMD ["/venv/bin/python", "app.py"]
