# docker build -t cutthrough .                              the proxy
# docker build -t cutthrough-load --target load .           the load generator of docker-compose.yml
# Both run as a user without a name, need no capability, and write nowhere but in the proxy's spool.
ARG NODE=node:24.21.0-bookworm-slim

FROM ${NODE} AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM ${NODE} AS build
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY tsconfig.json tsconfig.build.json ./
COPY src src
RUN npm run build && chmod 755 dist/cli.js
COPY test/support test/support
RUN npx --no-install tsc -p test/support/load --outDir load

FROM ${NODE} AS runtime
# An init: passes signals on, and reaps what `docker exec` and health checks leave behind.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
ENV NODE_ENV=production
WORKDIR /app
ENTRYPOINT ["/usr/bin/tini", "--"]
STOPSIGNAL SIGTERM

FROM runtime AS load
COPY package.json ./
COPY --from=build /app/load load
USER 10001:10001
EXPOSE 2500
CMD ["node", "load/load/main.js"]

FROM runtime AS proxy
RUN install -d -o 10001 -g 10001 -m 0700 /var/spool/cutthrough \
    && ln -s /app/dist/cli.js /usr/local/bin/cutthrough
COPY --from=dependencies /app/node_modules node_modules
COPY --from=build /app/dist dist
COPY package.json LICENSE ./
# Replaced by mounting a file over it, or by naming another in CUTTHROUGH_CONFIG; single options by CUTTHROUGH_<NAME>.
COPY deploy/image/cutthrough.yaml /etc/cutthrough/cutthrough.yaml
ENV CUTTHROUGH_CONFIG=/etc/cutthrough/cutthrough.yaml
USER 10001:10001
VOLUME /var/spool/cutthrough
EXPOSE 2525 9525
# Draining is "not ready": whoever balances by this sends nothing more. Needs http on port 9525.
HEALTHCHECK --interval=15s --timeout=5s --start-period=10s --retries=3 \
    CMD ["node", "-e", "require('node:http').get('http://127.0.0.1:9525/readyz', ({ statusCode }) => process.exit(statusCode === 200 ? 0 : 1)).on('error', () => process.exit(1))"]
# `docker run cutthrough check` and the other commands work as well. Stop it with more patience than --drain-timeout
# (30s): docker stop --time 45.
ENTRYPOINT ["/usr/bin/tini", "--", "node", "/app/dist/cli.js"]
CMD ["serve"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="cutthrough" \
      org.opencontainers.image.description="A cut-through SMTP proxy: 250 only when every next hop has said so" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
