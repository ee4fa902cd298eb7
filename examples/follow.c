/* Prints the active connections, then what changes: a copy of flowbusd's table that its signals keep.
 *
 *   cc follow.c -o follow $(pkg-config --cflags --libs gio-2.0)
 *   ./follow [ADDRESS]
 *
 * The argument is the address of a bus; without it the system bus is asked. `gdbus-codegen` makes typed functions of the
 * interfaces in /usr/share/dbus-1/interfaces; this shows what is called.
 */
#include <gio/gio.h>
#include <stdlib.h>

#define MONITOR "org.flowbus.FlowMonitor1"
#define EVENTS "org.flowbus.FlowEvents1"

/* The active flows, as they are printed, and the number of the last change that the list had. */
static GHashTable *alive;
static guint64 included;

static G_GNUC_NORETURN void fail(const char *text)
{
	g_printerr("%s\n", text);
	exit(1);
}

static void show(const char *what, const char *flow)
{
	g_print("%s %s\n", what, flow);
}

static char *text(GVariant *flow)
{
	guint64 id = 0;
	const char *protocol = "", *src = "", *dst = "";

	g_variant_lookup(flow, "id", "t", &id);
	g_variant_lookup(flow, "protocol", "&s", &protocol);
	g_variant_lookup(flow, "src", "&s", &src);
	g_variant_lookup(flow, "dst", "&s", &dst);
	return g_strdup_printf("%" G_GUINT64_FORMAT " %s %s %s", id, protocol, src, dst);
}

static GHashTable *new_table(void)
{
	return g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
}

/* Prints what is in these and not in those. */
static void show_difference(const char *what, GHashTable *these, GHashTable *those)
{
	GHashTableIter iter;
	gpointer flow;

	g_hash_table_iter_init(&iter, these);
	while (g_hash_table_iter_next(&iter, &flow, NULL))
		if (!g_hash_table_contains(those, flow))
			show(what, flow);
}

/* Reads every page, and prints what differs from the table so far. Each change up to the number of the first page is in them. */
static gboolean list_active(GDBusConnection *bus, GError **error)
{
	g_autoptr(GHashTable) now = new_table();
	guint64 next = 0, first = 0;
	gboolean begun = FALSE, more = TRUE;

	while (more) {
		const char *fields[] = { "id", "protocol", "src", "dst", NULL };
		g_autoptr(GVariant) reply = NULL, flows = NULL, page = NULL;
		GVariantBuilder query;
		GVariantIter iter;
		GVariant *flow;

		g_variant_builder_init(&query, G_VARIANT_TYPE_VARDICT);
		g_variant_builder_add(&query, "{sv}", "limit", g_variant_new_uint32(1000));
		g_variant_builder_add(&query, "{sv}", "fields", g_variant_new_strv(fields, -1));
		if (begun)
			g_variant_builder_add(&query, "{sv}", "after", g_variant_new_uint64(next));
		reply = g_dbus_connection_call_sync(bus, MONITOR, "/org/flowbus/FlowMonitor1", MONITOR, "ListActive",
						    g_variant_new("(a{sv})", &query), G_VARIANT_TYPE("(aa{sv}a{sv})"),
						    G_DBUS_CALL_FLAGS_NONE, -1, NULL, error);
		if (!reply)
			return FALSE;
		g_variant_get(reply, "(@aa{sv}@a{sv})", &flows, &page);
		g_variant_iter_init(&iter, flows);
		while (g_variant_iter_loop(&iter, "@a{sv}", &flow))
			g_hash_table_add(now, text(flow));
		if (!begun)
			g_variant_lookup(page, "sequence", "t", &first);
		begun = TRUE;
		more = g_variant_lookup(page, "next", "t", &next);
	}
	show_difference("gone", alive, now);
	show_difference("alive", now, alive);
	g_hash_table_unref(alive);
	alive = g_steal_pointer(&now);
	included = first;
	return TRUE;
}

static void apply(GVariant *flow)
{
	guint64 sequence = 0;
	const char *event = "";
	g_autofree char *line = text(flow);

	g_variant_lookup(flow, "sequence", "t", &sequence);
	g_variant_lookup(flow, "event", "&s", &event);
	if (sequence <= included)
		return;
	show(event, line);
	if (g_str_equal(event, "destroy"))
		g_hash_table_remove(alive, line);
	else
		g_hash_table_add(alive, g_steal_pointer(&line));
}

static void on_signal(GDBusConnection *bus, const char *sender, const char *path, const char *interface,
		      const char *member, GVariant *body, gpointer data)
{
	g_autoptr(GError) error = NULL;
	/* flowbusd sends Resynced at its start too. */
	guint64 lost = g_str_equal(member, "Resynced");

	if (g_str_equal(member, "FlowEvents")) {
		g_autoptr(GVariantIter) flows = NULL;
		GVariant *flow;

		g_variant_get(body, "(taa{sv}t)", NULL, &flows, &lost);
		while (!lost && g_variant_iter_loop(flows, "@a{sv}", &flow))
			apply(flow);
	}
	if (lost && !list_active(bus, &error))
		g_printerr("waiting for flowbusd: %s\n", error->message);
}

static void on_closed(GDBusConnection *bus, gboolean vanished, GError *error, gpointer data)
{
	fail("The bus has closed the connection.");
}

int main(int argc, char **argv)
{
	g_autoptr(GError) error = NULL;
	g_autoptr(GDBusConnection) bus = NULL;

	if (argc > 1)
		bus = g_dbus_connection_new_for_address_sync(argv[1],
			G_DBUS_CONNECTION_FLAGS_AUTHENTICATION_CLIENT | G_DBUS_CONNECTION_FLAGS_MESSAGE_BUS_CONNECTION,
			NULL, NULL, &error);
	else
		bus = g_bus_get_sync(G_BUS_TYPE_SYSTEM, NULL, &error);
	if (!bus)
		fail(error->message);
	/* GLib would end the program without a word. */
	g_dbus_connection_set_exit_on_close(bus, FALSE);
	g_signal_connect(bus, "closed", G_CALLBACK(on_closed), NULL);

	/* Subscribe before listing: what changes in between would be missed. */
	g_dbus_connection_signal_subscribe(bus, EVENTS, EVENTS, NULL, "/org/flowbus/FlowEvents1", NULL,
					   G_DBUS_SIGNAL_FLAGS_NONE, on_signal, NULL, NULL);
	alive = new_table();
	if (!list_active(bus, &error))
		fail(error->message);
	g_main_loop_run(g_main_loop_new(NULL, FALSE));
}
