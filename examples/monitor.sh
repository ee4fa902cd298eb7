#!/bin/sh
# Prints FlowEvents readably: a line for each begin, change and end of a connection. Needs busctl, jq and root, to whom alone a bus shows
# the messages of others; members of the group flowbus use `flowctl monitor`. Arguments are busctl's, such as --address=ADDRESS.
set -eu

busctl "$@" --json=short monitor org.flowbus.FlowEvents1 | jq --unbuffered -r '
  select(.member == "FlowEvents") | .payload.data[1][] | map_values(.data) |
  "\(.event) \(.id) \(.protocol) \(.state // "-") \(.src) \(.sport // "-") \(.dst) \(.dport // "-")"'

# busctl says why it ended, and ends with 0 when the bus does.
exit 1
