# What every node of a cluster of several hosts finds in its environment; sourced before `ray start` and by ~/.bashrc.
# shellcheck shell=sh

export PATH="$HOME/stoker-venv/bin:$PATH"

# Token authentication. The token is in ~/.ray/auth_token, which `ray up` copies to every node; without this line a
# node whose home lacks the file would quietly run without authentication.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0

# Paths in a job stay what they are; Ray Train would change into a folder of its own.
export RAY_CHDIR_TO_TRIAL_DIR=0
# `ray job stop` asks first and lets a training run end its workers by itself.
export RAY_JOB_STOP_SIGNAL=SIGINT
export RAY_JOB_STOP_WAIT_TIME_S=30

# Lost and frozen workers are noticed in about a minute (Ray's own values are 600 s, 60 s and 30 s). The first must
# exceed the longest pause in which a worker holds the interpreter's lock.
export RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S=120
export RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=30
export RAY_TRAIN_COLLECTIVE_TIMEOUT_S=600
export TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S=10

# What differs between sites: AWS_ENDPOINT_URL of a store of your own, AWS_PROFILE, NCCL_SOCKET_IFNAME, proxies.
if [ -f "$HOME/stoker-site.sh" ]; then
    . "$HOME/stoker-site.sh"
fi
