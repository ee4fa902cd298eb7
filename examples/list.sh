#!/bin/sh
# Prints the active connections, page by page. Needs busctl and jq. Arguments are busctl's, such as --address=ADDRESS.
set -eu

name=org.flowbus.FlowMonitor1
path=/org/flowbus/FlowMonitor1
after=0
while [ -n "$after" ]; do
  page=$(busctl "$@" --json=short call $name $path $name ListActive 'a{sv}' 3 \
    limit u 500 after t "$after" fields as 4 id protocol src dst)
  printf '%s\n' "$page" | jq -r '.data[0][] | map_values(.data) | "alive \(.id) \(.protocol) \(.src) \(.dst)"'
  after=$(printf '%s\n' "$page" | jq -r '.data[1].next.data // empty')
done
