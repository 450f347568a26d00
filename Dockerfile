# peakline with all extras, for the CPU. The limit of the container (docker run --memory 2g) is what --memory auto reads.
FROM python:3.11-slim
COPY . /opt/peakline
RUN pip install --no-cache-dir -c /opt/peakline/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu "/opt/peakline[all]" \
    && useradd --create-home peakline
USER peakline
WORKDIR /home/peakline
CMD ["python", "-m", "apps.demo"]
