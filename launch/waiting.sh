# Sourced by the scripts that start several processes on this machine.

# Waits for the processes `pids`; `code` becomes 0, 75 where one was stopped or killed, or that of the first that failed.
wait_for_all() {
  code=0
  for pid in "${pids[@]}"; do
    wait "$pid"
    status=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal came, not the end of the process
      wait "$pid"
      status=$?
    done
    [ "$status" -lt 128 ] || status=75
    [ "$status" -eq 0 ] || { [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; } || code=$status
  done
}
