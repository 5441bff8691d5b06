# OSP-Next on Ascend. NOT RUN: nothing here builds or starts it; docs/ascend.md says what has been checked and what not.
#
#   docker build -t ospnext .                      # on Atlas A2; for others: --build-arg CANN=9.0.0-a3-ubuntu22.04-py3.11
#   docker run --rm -it --network host --shm-size 16g $(ls /dev/davinci[0-9]* | sed 's/^/--device /') \
#     --device /dev/davinci_manager --device /dev/devmm_svm --device /dev/hisi_hdc \
#     -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro \
#     -v "$PWD/checkpoints:/ospnext/checkpoints" -v "$PWD/output:/ospnext/output" ospnext python -m ospnext_ms doctor
#
# The base image holds CANN and its Python packages te and hccl; the driver is the host's.
ARG CANN=9.0.0-910b-ubuntu22.04-py3.11
FROM ascendai/cann:${CANN}
WORKDIR /ospnext
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY ospnext_ms ospnext_ms
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
# The base image sets CANN's variables in login shells.
SHELL ["/bin/bash", "-lc"]
ENTRYPOINT ["/bin/bash", "-lc", "exec \"$@\"", "--"]
CMD ["python", "-m", "ospnext_ms", "doctor"]
