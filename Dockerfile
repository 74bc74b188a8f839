# The gate as an image: the locked packages, then the project. Everything it is told comes from its environment.
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 tollgate
WORKDIR /opt/tollgate

COPY requirements.lock ./
RUN pip install --no-cache-dir --disable-pip-version-check --require-hashes --no-deps -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY schemas ./schemas
# The build backend is among the locked packages: nothing else is fetched.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

RUN install -d -o tollgate /var/lib/tollgate
USER tollgate
WORKDIR /var/lib/tollgate
ENTRYPOINT ["tollgate"]
CMD ["gate"]
