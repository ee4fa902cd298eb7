# Copyright 2026 The flowbus developers
# Distributed under the terms of the MIT license or the Apache License, version 2.0

EAPI=8

# The dependencies, from Cargo.lock: `pycargoebuild` fills this in for a release.
CRATES=""
RUST_MIN_VER="1.89.0"

inherit cargo

DESCRIPTION="Connection tracking table on D-Bus"
HOMEPAGE="https://github.com/flowbus/flowbus"
SRC_URI="https://github.com/flowbus/flowbus/archive/v${PV}.tar.gz -> ${P}.tar.gz ${CARGO_CRATE_URIS}"

LICENSE="|| ( MIT Apache-2.0 )"
SLOT="0"
KEYWORDS="~amd64 ~arm64"

RDEPEND="sys-apps/dbus"
BDEPEND="llvm-core/clang dev-libs/libbpf"

src_compile() {
	cargo_env packaging/compile || die
}

src_install() {
	docdir="${EPREFIX}/usr/share/doc/${PF}" zshdir="${EPREFIX}/usr/share/zsh/site-functions" prefix="${EPREFIX}/usr" \
		packaging/install "$(cargo_target_dir)/../release" "${D}" || die # with USE=debug too
}
