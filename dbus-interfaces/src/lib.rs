//! Names, the flow dictionary and the client side of flowbus on D-Bus.
