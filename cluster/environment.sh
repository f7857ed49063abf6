# The environment of every node of a cluster of several hosts; sourced before `ray start` and by ~/.bashrc.
# shellcheck shell=sh

export PATH="$HOME/stoker-venv/bin:$PATH"

# Token authentication. The token is in ~/.ray/auth_token, which `ray up` copies to every node; without this line a
# node whose home lacks the file would quietly run without authentication.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0

# Relative paths in a job keep their meaning; Ray Train would change into a folder of its own.
export RAY_CHDIR_TO_TRIAL_DIR=0
# `ray job stop` interrupts and waits: a training run then writes a checkpoint and exits. How soon lost and frozen workers
# are detected is set by the run's driver (stoker.training.fault_tolerance.ray_train.TIMEOUTS); what is set here takes
# precedence.
export RAY_JOB_STOP_SIGNAL=SIGINT
export RAY_JOB_STOP_WAIT_TIME_S=120

# The endpoint: HAProxy in front (it comes with ray[serve]), by a launcher that corrects what Serve configures; the values
# are those of `stoker up` (stoker.embedded.serving), which says what each is for. Replicas listen on 30000 to 31000.
export RAY_SERVE_ENABLE_HA_PROXY=1
export RAY_SERVE_HAPROXY_BINARY_PATH="$HOME/stoker-venv/bin/stoker-haproxy"
# Its files, where no other user can make them first.
mkdir -p -m 700 "$HOME/.stoker" "$HOME/.stoker/haproxy"
export RAY_SERVE_HAPROXY_CONFIG_FILE_LOC="$HOME/.stoker/haproxy/haproxy.cfg"
export RAY_SERVE_HAPROXY_SOCKET_PATH="$HOME/.stoker/haproxy/admin.sock"
export RAY_SERVE_HAPROXY_SERVER_STATE_BASE="$HOME/.stoker/haproxy"
export RAY_SERVE_HAPROXY_SERVER_STATE_FILE="$HOME/.stoker/haproxy/server-state"
export RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH="$HOME/.stoker/haproxy/metrics.sock"
export RAY_SERVE_HAPROXY_METRICS_ENABLED=0
export RAY_SERVE_HAPROXY_MAXCONN=2048
export RAY_SERVE_HAPROXY_TUNE_BUFSIZE=131072
export RAY_SERVE_HAPROXY_RETRY_ON="conn-failure empty-response"
export RAY_SERVE_HAPROXY_RETRIES=1
export RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER=1s
export RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=1
export RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=15
export RAY_SERVE_THROUGHPUT_OPTIMIZED=1
export RAY_worker_niceness=0

# What differs between sites: AWS_ENDPOINT_URL of a store of your own, AWS_PROFILE, NCCL_SOCKET_IFNAME, proxies.
if [ -f "$HOME/stoker-site.sh" ]; then
    . "$HOME/stoker-site.sh"
fi

# The hashes of the API keys that the endpoint accepts. `ray up` copies this file; an s3:// URL in ~/stoker-site.sh instead
# is read by all nodes, and a key that is revoked there is refused by all of them within seconds.
export STOKER_API_KEY_FILE="${STOKER_API_KEY_FILE:-$HOME/.stoker/api-keys}"
