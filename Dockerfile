# mailbalancer in a container, as an ordinary user. Two stages: pip and what it needs to build stay in the first.
#
#   docker build -t mailbalancer .
#   docker run -d --name mail --network host \
#       --cap-drop ALL --cap-add NET_BIND_SERVICE --security-opt no-new-privileges \
#       --read-only --tmpfs /run/mailbalancer:uid=10025,gid=10025,mode=0750 \
#       --ulimit nofile=200000:200000 --stop-timeout 60 \
#       -v /etc/mailbalancer:/etc/mailbalancer:ro -v mailbalancer-state:/var/lib/mailbalancer mailbalancer
#
# Network: with `--network host` the real servers see the clients' way as on any machine. Behind Docker's own port
# mapping every client may come from one address (the bridge's), which defeats persistence by source.
#
# Ports below 1024 (25, 443, ...): an ordinary user in a container may open them where the sysctl
# net.ipv4.ip_unprivileged_port_start is 0, as Docker sets it in a network namespace of the container's own. With
# `--network host` the host's value holds (1024): set it on the host to the lowest port of a service, e.g.
# `sysctl net.ipv4.ip_unprivileged_port_start=25`. `--cap-add NET_BIND_SERVICE` alone gives the capability to the bounding
# set and not to this user; no setcap is done here, because on a Python interpreter it would be a right for every script.

FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/mailbalancer
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# the pinned packages first: they change seldom, so this layer is built seldom
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY mailbalancer/__init__.py mailbalancer/__init__.py
RUN /opt/mailbalancer/bin/pip install -c constraints.txt pip setuptools \
    && /opt/mailbalancer/bin/pip install -c constraints.txt --no-build-isolation .
COPY mailbalancer mailbalancer
COPY profiles profiles
RUN /opt/mailbalancer/bin/pip install --no-deps --force-reinstall --no-build-isolation . \
    && /opt/mailbalancer/bin/pip uninstall -y pip setuptools \
    && /opt/mailbalancer/bin/python -m compileall -q /opt/mailbalancer/lib

FROM python:3.13-slim
# The number is fixed so that folders outside can be given to it. It owns nothing but its state and its socket.
RUN groupadd --system --gid 10025 mailbalancer \
    && useradd --system --uid 10025 --gid 10025 --home-dir /var/lib/mailbalancer --shell /usr/sbin/nologin mailbalancer \
    && install -d -o mailbalancer -g mailbalancer -m 0750 /run/mailbalancer /var/lib/mailbalancer \
    && install -d /etc/mailbalancer
COPY --from=build /opt/mailbalancer /opt/mailbalancer
ENV PATH=/opt/mailbalancer/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER mailbalancer
WORKDIR /var/lib/mailbalancer
VOLUME ["/var/lib/mailbalancer"]
# SIGTERM lets sessions finish (stop_timeout_s); give `docker stop` more time than that, as above.
STOPSIGNAL SIGTERM
# Asks the supervisor over its control socket: it answers only when its event loop turns. Which real servers are down
# is not the container's health: restarting the balancer would not bring them back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 \
    CMD ["mailbalancer", "status", "-c", "/etc/mailbalancer/mailbalancer.yaml", "--json"]
ENTRYPOINT ["mailbalancer"]
CMD ["run", "-c", "/etc/mailbalancer/mailbalancer.yaml"]
