#!/bin/bash
# A grid on a Slurm allocation: one Ray node a machine, the driver on the first. From the checkout:
#
#   sbatch deploy/slurm.sh --grid paper --data /shared/data --results /shared/results
#
# All arguments go to tuner.run. --data and --results must lie where all machines see them. Two minutes before the time
# limit, and on preemption where the site sends the signal, what is running saves a checkpoint and the job is queued
# again; the same command then continues. `scancel --signal=TERM --batch JOBID` does the same by hand.
#SBATCH --job-name=grid
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=grid-%j.log
#SBATCH --signal=B:TERM@120

set -u
export PATH="$PWD/.venv/bin:$PATH"          # `make env` makes it; a site's own environment will do as well
export RAY_AUTH_MODE=token                  # machines are shared: only this job's processes may join
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID    # not another job's
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=1 # a trial without a share of a GPU sees none
export RAY_USAGE_STATS_ENABLED=0

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
others=$((${#machines[@]} - 1))
ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
ip=${ip%% *}
address=$ip:$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine do not share a port
has=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)

steps=()
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --node-ip-address="$ip" --port="${address##*:}" \
    --dashboard-host=127.0.0.1 --dashboard-port=0 --ray-client-server-port=$((30000 + SLURM_JOB_ID % 10000)) "${has[@]}" &
steps+=($!)
if ((others > 0)); then
    srun --overlap --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head" \
        bash -c 'until ray start --address="$0" "$@"; do sleep 5; done' "$address" "${has[@]}" &
    steps+=($!)
fi

# A TERM before the driver runs has nothing to save, but must queue the job again as well.
driver=
stopped=
stop() {
    [[ -n $stopped ]] && return # the driver takes a second signal for "at once"
    stopped=1
    [[ -n $driver ]] && kill -TERM "$driver"
}
trap stop TERM

count='import ray, sys; ray.init(address=sys.argv[1], logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))'
code=130
until [[ -n $stopped ]] || ((SECONDS > 300)); do
    [[ $(python -c "$count" "$address" 2>/dev/null) == "${#machines[@]}" ]] && break
    sleep 1 &
    wait $! # `sleep` in the foreground would hold the signal back
done
if [[ -z $stopped ]]; then
    python -m tuner.run "$@" --address "$address" &
    driver=$!
    wait "$driver"
    code=$?
    while kill -0 "$driver" 2>/dev/null; do # the signal ended `wait`, not the driver
        wait "$driver"
        code=$?
    done
fi

kill "${steps[@]}" 2>/dev/null
wait "${steps[@]}" 2>/dev/null
if [[ -n $stopped && $code == 130 ]]; then # not where the last run was just done
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
