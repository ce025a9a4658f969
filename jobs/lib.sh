# What the batch scripts share: sourced, not run. docs/cluster.md is the page about it.
#
#   ALIGNMENT_JOBS         the folder of these scripts; unset: jobs/ where sbatch was typed
#   ALIGNMENT_ENVIRONMENT  what holds python: a venv's folder, image.sif (Apptainer) or image.sqsh (Enroot,
#                          through Pyxis); unset: .venv beside the scripts where there is one, else
#                          what is on the PATH
#   ALIGNMENT_MOUNTS       folders that an image shall see beside the working one: /scratch,/data
#   ALIGNMENT_INTERFACE    the network interface between ranks (ib0); unset: the address of the first node's name
#   ALIGNMENT_REQUEUES     times that a job queues again at most (50), preempted, at its time limit or after a fault
#   ALIGNMENT_FAULTS       of these, times after a rank that was killed, or a device that failed (3)
#   ALIGNMENT_FINISHED     a file which says that there is nothing left to do; in an array ALIGNMENT_FINISHED_<number>
# shellcheck shell=bash
set -uo pipefail

readonly SAVED=85 # the program has saved and wants to go on later (alignment/signals.py)
readonly LOST=86  # a device has failed, or another process is gone (alignment/errors.py)
readonly LAST=15  # seconds before the job's end at which ranks that go on are no longer waited for
readonly ATTEMPTS=6 PAUSE=10 # a controller that starts anew is back within a minute

number=${SLURM_ARRAY_TASK_ID:-}
# The number of a task's job may be that of its whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$number}
job=${job:-${SLURM_JOB_ID:?not a Slurm job: submit it with sbatch}}
restarts=${SLURM_RESTART_COUNT:-0}
step= # the process id of srun while ranks run
timer= # the process id of what wakes this shell before the job's end, once it was told of that
warned= # whether a signal has come
late= # whether that was the timer's
trap 'warned=1' USR1 TERM

say() { printf '[%s job %s] %s\n' "$(date -u +%H:%M:%S)" "$job" "$*"; }

# ── before ───────────────────────────────────────────────────────────────────────────────────────

# The job's command line, in ARGUMENTS: %a in only= becomes the number in the array; force=, in whichever way it says
# true, holds for the first start.
arguments() {
  local argument
  ARGUMENTS=()
  for argument in "$@"; do
    case $argument in
      only=*) ARGUMENTS+=("${argument//%a/$number}") ;;
      force=*) ((restarts)) || ARGUMENTS+=("$argument") ;;
      *) ARGUMENTS+=("$argument") ;;
    esac
  done
}

finished() {
  local name=ALIGNMENT_FINISHED${number:+_$number}
  [[ -n ${!name:-} && -f ${!name} ]]
}

# The words before a program, in INSIDE and OPTIONS (srun's own).
inside() {
  local place=${ALIGNMENT_ENVIRONMENT:-} folder mounts
  INSIDE=() OPTIONS=()
  mounts=$PWD${ALIGNMENT_MOUNTS:+,$ALIGNMENT_MOUNTS}
  case $place in
    *.sif)
      INSIDE=(apptainer exec --pwd "$PWD" --bind "$mounts")
      [[ -n ${SLURM_GPUS_ON_NODE:-} ]] && INSIDE+=(--nv)
      INSIDE+=("$place")
      ;;
    *.sqsh)
      srun --help | grep -q container-image || { say "ALIGNMENT_ENVIRONMENT=$place: this srun lacks Pyxis"; exit 2; }
      OPTIONS=("--container-image=$place" "--container-workdir=$PWD" "--container-mounts=$(paired "$mounts")")
      ;;
    '')
      folder=$(dirname "$jobs")/.venv
      [[ -x $folder/bin/python ]] && export PATH=$folder/bin:$PATH
      ;;
    *)
      [[ -x $place/bin/python ]] || { say "ALIGNMENT_ENVIRONMENT=$place: no bin/python in it, and no image"; exit 2; }
      # DeepSpeed looks for ninja on the PATH.
      export PATH=$place/bin:$PATH
      ;;
  esac
}

paired() { # /a,/b → /a:/a,/b:/b
  local folder all=
  while IFS= read -r -d , folder; do all+=${all:+,}$folder:$folder; done <<<"$1,"
  echo "$all"
}

# Where ranks find each other: an address of the first node, as that node knows it, since its name need not resolve.
rendezvous() {
  local head found
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  if [[ -n ${ALIGNMENT_INTERFACE:-} ]]; then
    found=$(on "$head" ip -4 -oneline address show dev "$ALIGNMENT_INTERFACE" | awk '{ sub("/.*", "", $4); print $4; exit }')
    [[ -n $found ]] || { say "ALIGNMENT_INTERFACE=$ALIGNMENT_INTERFACE: $head has no such interface with an address"; exit 2; }
    export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$ALIGNMENT_INTERFACE}
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$ALIGNMENT_INTERFACE}
  else
    found=$(on "$head" hostname --ip-address | awk '{ print $1; exit }')
    # Some systems resolve their own name to themselves, where nobody else reaches them.
    [[ $found == 127.* || $found == ::1 ]] && found=$(on "$head" hostname --all-ip-addresses | awk '{ print $1; exit }')
    [[ -n $found ]] || { say "$head has no address: name its network interface with ALIGNMENT_INTERFACE"; exit 2; }
  fi
  export MASTER_ADDR=$found
  # Known to the ranks alone: who else reaches the port cannot speak for them.
  ALIGNMENT_TEAM_KEY=$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')
  export ALIGNMENT_TEAM_KEY
  # Below the ports that systems give out by themselves, and another one after every restart.
  export MASTER_PORT=$((20000 + (SLURM_JOB_ID * 7 + restarts) % 12000))
}

on() { # a node, a command
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" "$@"
}

# What a program of Slurm's says, which is asked again where the controller does not answer.
asked() {
  local said attempt
  for ((attempt = 1; ; attempt++)); do
    said=$("$@") && break
    ((attempt < ATTEMPTS)) || return 1
    sleep "$PAUSE"
  done
  [[ -z $said ]] || echo "$said"
}

# When Slurm will end the job, in seconds since 1970; far off where that is not known.
limit() {
  local said
  said=$(asked squeue --noheader --jobs="$job" --format=%e)
  # date takes nothing for today's midnight.
  [[ -n $said ]] && date -d "$said" +%s 2>/dev/null || echo 9999999999
}

# ── the ranks ────────────────────────────────────────────────────────────────────────────────────

# Run a program as one srun task a rank, and end the job as it has ended.
ranks() {
  local code
  if finished; then
    say "finished already"
    exit 0
  fi
  jobs=${ALIGNMENT_JOBS:-$SLURM_SUBMIT_DIR/jobs}
  ends=$(limit)
  inside
  ((${SLURM_NTASKS:-1} == 1)) || rendezvous
  # srun no longer takes this from sbatch by itself.
  export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
  export PYTHONUNBUFFERED=1
  ((restarts)) && say "start $((restarts + 1))"
  [[ -z $warned ]] || again "told to end before it had begun"
  # A rank that ends with an error must not end those that are still saving; those that wait for it end by themselves,
  # within seconds once they have come together. Before that nobody but srun knows that one will not come.
  srun --kill-on-bad-exit=0 --wait=90 ${OPTIONS[@]+"${OPTIONS[@]}"} ${INSIDE[@]+"${INSIDE[@]}"} "$@" &
  step=$!
  # Slurm tells the batch shell of the time limit, and the ranks themselves of preemption.
  trap 'warned=1; kill -s USR1 "$step"' USR1
  trap 'warned=1; late=1' ALRM
  [[ -z $warned ]] || { kill -s USR1 "$step"; set_timer; }
  while :; do
    warned=
    wait "$step"
    code=$?
    [[ -n $warned ]] || break
    if [[ -z $late ]]; then
      set_timer
    else
      late=
      # At its limit Slurm would end the batch shell with the ranks, and take the job for failed.
      finished || again "still at work shortly before its end"
    fi
  done
  [[ -z $timer ]] || kill "$timer" 2>/dev/null
  conclude "$code"
}

# Let this shell be woken shortly before the job's end, for ranks that have not stopped by then.
set_timer() {
  local left
  [[ -z $timer ]] || return
  # It may have been moved since the job began.
  ends=$(limit)
  left=$((ends - $(date +%s)))
  ((left > 0)) || return
  # Who was told late has half of what is left.
  { sleep $((left > 2 * LAST ? left - LAST : left / 2)) && kill -s ALRM $$; } &>/dev/null &
  timer=$!
}

# End the job with the code of its ranks: finished, queued again, or failed.
conclude() {
  local code=$1
  case $code in
    0) exit 0 ;;
    "$SAVED") again "saved before its end" ;;
    # USR1 or TERM, before the program could listen or after it had no more to say.
    138 | 143) finished || again "stopped by signal $((code - 128))" ;;
    "$LOST") finished || fault "a device has failed, or a rank is gone" ;;
    134 | 135 | 137 | 139) finished || fault "a rank was ended by signal $((code - 128))" ;;
  esac
  if finished; then
    say "finished; its processes ended with $code on their way out"
    exit 0
  fi
  say "ended with $code"
  exit "$code"
}

fault() {
  local most=${ALIGNMENT_FAULTS:-3} before
  before=$(asked squeue --noheader --jobs="$job" --format=%k | sed -n 's/^faults=\([0-9]*\)$/\1/p')
  if ((${before:-0} >= most)); then
    say "$1; that is fault $((${before:-0} + 1)), and ALIGNMENT_FAULTS=$most"
    return
  fi
  asked scontrol update JobId="$job" Comment="faults=$((${before:-0} + 1))"
  again "$1"
}

again() {
  local most=${ALIGNMENT_REQUEUES:-50} state
  if ((restarts >= most)); then
    say "$1; it was queued again $restarts times, and ALIGNMENT_REQUEUES=$most"
    return
  fi
  if ! state=$(asked squeue --noheader --jobs="$job" --format=%T); then
    say "$1; Slurm does not answer"
    return
  fi
  if [[ $state != RUNNING && $(date +%s) -lt $ends ]]; then
    # Cancelled by somebody, or already queued again by Slurm, which also requeues a cancelled job if asked.
    say "$1; Slurm has ended the job"
    return
  fi
  say "$1; queueing again"
  asked scontrol requeue "$job" && exit "$SAVED"
  say "Slurm does not queue it again"
}
