#!/usr/bin/python3
"""Prints the active connections, then what changes: a copy of flowbusd's table that its signals keep.

Needs dbus-fast (Debian: python3-dbus-fast). The argument is the address of a bus; without it the system bus is asked.
Signals are batched, and updates of a connection within a batch are merged; OpenStream has every change.
"""

import asyncio
import sys

from dbus_fast import BusType, DBusError, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.unpack import unpack_variants

MONITOR = "org.flowbus.FlowMonitor1"
EVENTS = "org.flowbus.FlowEvents1"
FIELDS = ["id", "protocol", "src", "dst"]


async def interface(bus, name):
    path = "/" + name.replace(".", "/")
    return bus.get_proxy_object(name, path, await bus.introspect(name, path)).get_interface(name)


def text(flow):
    return " ".join(str(flow[field]) for field in FIELDS)


def show(what, flows):
    for flow in sorted(flows):
        print(what, flow, flush=True)


async def list_active(monitor):
    """Reads every page. Each change up to the returned number is in them: that of the first page."""
    query = {"limit": Variant("u", 1000), "fields": Variant("as", FIELDS)}
    alive, included = set(), None
    while True:
        flows, page = unpack_variants(await monitor.call_list_active(query))
        alive.update(map(text, flows))
        included = page["sequence"] if included is None else included
        if "next" not in page:
            return alive, included
        query["after"] = Variant("t", page["next"])


async def follow(bus):
    """Prints the table, then what changes, for ever."""
    monitor, events = await interface(bus, MONITOR), await interface(bus, EVENTS)

    # Subscribe before listing: what changes in between would be missed.
    batches = asyncio.Queue()
    events.on_flow_events(lambda sequence, flows, lost: batches.put_nowait((unpack_variants(flows), lost)))
    # flowbusd sends it at its start too.
    events.on_resynced(lambda details: batches.put_nowait(([], 1)))
    alive, included = await list_active(monitor)
    show("alive", alive)
    while True:
        flows, lost = await batches.get()
        if lost:
            try:
                now, included = await list_active(monitor)
            except DBusError as error:
                print("waiting for flowbusd:", error, file=sys.stderr)
                continue
            show("gone", alive - now)
            show("alive", now - alive)
            alive = now
            continue
        for flow in flows:
            if flow["sequence"] <= included:
                continue
            if flow["event"] == "destroy":
                alive.discard(text(flow))
            else:
                alive.add(text(flow))
            show(flow["event"], [text(flow)])


async def main():
    address = sys.argv[1] if len(sys.argv) > 1 else None
    bus = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
    following = asyncio.create_task(follow(bus))
    # No signal comes from a bus that is gone: without this it would wait in silence.
    gone = asyncio.ensure_future(bus.wait_for_disconnect())
    await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not gone.done():
        following.result()
    # Read, for asyncio complains of an exception that nobody has seen.
    gone.exception()
    sys.exit("The bus has closed the connection.")


asyncio.run(main())
