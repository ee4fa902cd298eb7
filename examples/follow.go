// Prints the active connections, then what changes: a copy of flowbusd's table that its signals keep.
//
//	go run follow.go [ADDRESS]
//
// Needs github.com/godbus/dbus/v5. The argument is the address of a bus; without it the system bus is asked.
package main

import (
	"fmt"
	"log"
	"os"

	"github.com/godbus/dbus/v5"
)

const (
	monitor = "org.flowbus.FlowMonitor1"
	events  = "org.flowbus.FlowEvents1"
)

var fields = []string{"id", "protocol", "src", "dst"}

type flow = map[string]dbus.Variant

func text(flow flow) string {
	return fmt.Sprint(flow["id"].Value(), " ", flow["protocol"].Value(), " ", flow["src"].Value(), " ", flow["dst"].Value())
}

func connect() (*dbus.Conn, error) {
	// Signals in the order in which they were sent.
	inOrder := dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())
	if len(os.Args) > 1 {
		return dbus.Connect(os.Args[1], inOrder)
	}
	return dbus.ConnectSystemBus(inOrder)
}

// listActive reads every page. Each change up to the returned number is in them: that of the first page.
func listActive(conn *dbus.Conn) (map[string]bool, uint64, error) {
	object := conn.Object(monitor, "/org/flowbus/FlowMonitor1")
	query := flow{"limit": dbus.MakeVariant(uint32(1000)), "fields": dbus.MakeVariant(fields)}
	alive := map[string]bool{}
	var included uint64
	for first := true; ; first = false {
		var flows []flow
		var page flow
		if err := object.Call(monitor+".ListActive", 0, query).Store(&flows, &page); err != nil {
			return nil, 0, err
		}
		for _, flow := range flows {
			alive[text(flow)] = true
		}
		if first {
			included = page["sequence"].Value().(uint64)
		}
		next, more := page["next"]
		if !more {
			return alive, included, nil
		}
		query["after"] = next
	}
}

// show prints what is in these and not in those.
func show(what string, these, those map[string]bool) {
	for flow := range these {
		if !those[flow] {
			fmt.Println(what, flow)
		}
	}
}

func main() {
	log.SetFlags(0)
	conn, err := connect()
	if err != nil {
		log.Fatal(err)
	}
	// Subscribe before listing: what changes in between would be missed.
	if err := conn.AddMatchSignal(dbus.WithMatchSender(events), dbus.WithMatchInterface(events)); err != nil {
		log.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	alive, included, err := listActive(conn)
	if err != nil {
		log.Fatal(err)
	}
	show("alive", alive, nil)
	for signal := range signals {
		var sequence, lost uint64
		var flows []flow
		switch signal.Name {
		case events + ".FlowEvents":
			if err := dbus.Store(signal.Body, &sequence, &flows, &lost); err != nil {
				log.Fatal(err)
			}
		case events + ".Resynced":
			// flowbusd sends it at its start too.
			lost = 1
		}
		if lost > 0 {
			now, number, err := listActive(conn)
			if err != nil {
				log.Print("waiting for flowbusd: ", err)
				continue
			}
			show("gone", alive, now)
			show("alive", now, alive)
			alive, included = now, number
			continue
		}
		for _, flow := range flows {
			if flow["sequence"].Value().(uint64) <= included {
				continue
			}
			event := flow["event"].Value().(string)
			if event == "destroy" {
				delete(alive, text(flow))
			} else {
				alive[text(flow)] = true
			}
			fmt.Println(event, text(flow))
		}
	}
	log.Fatal("The bus has closed the connection.")
}
