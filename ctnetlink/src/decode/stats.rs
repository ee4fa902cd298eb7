//! The replies to `IPCTNL_MSG_CT_GET_STATS` and `IPCTNL_MSG_CT_GET_STATS_CPU`.

use crate::attribute::Attributes;
use crate::{CpuStats, DecodeError, Stats};

/// `enum ctattr_stats_global`, numbers of its own.
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;

/// The whole table's numbers.
pub(super) fn decode(mut attributes: Attributes<'_>) -> Result<Stats, DecodeError> {
    let (mut entries, mut maximum) = (None, None);
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            CTA_STATS_GLOBAL_ENTRIES => entries = Some(attribute.u32("CTA_STATS_GLOBAL_ENTRIES")?),
            CTA_STATS_GLOBAL_MAX_ENTRIES => maximum = Some(attribute.u32("CTA_STATS_GLOBAL_MAX_ENTRIES")?),
            _ => {}
        }
    }
    let missing = DecodeError::Missing { within: "message", attribute: "CTA_STATS_GLOBAL_ENTRIES" };
    Ok(Stats { entries: entries.ok_or(missing)?, maximum })
}

/// The numbers of `cpu`. `enum ctattr_stats_cpu`; 1, 3 and 5 to 7 are no longer sent.
pub(super) fn decode_cpu(cpu: u16, mut attributes: Attributes<'_>) -> Result<CpuStats, DecodeError> {
    let mut stats = CpuStats { cpu, ..CpuStats::default() };
    while let Some(attribute) = attributes.next()? {
        match attribute.kind {
            2 => stats.found = attribute.u32("CTA_STATS_FOUND")?,
            4 => stats.invalid = attribute.u32("CTA_STATS_INVALID")?,
            8 => stats.insert = attribute.u32("CTA_STATS_INSERT")?,
            9 => stats.insert_failed = attribute.u32("CTA_STATS_INSERT_FAILED")?,
            10 => stats.drop = attribute.u32("CTA_STATS_DROP")?,
            11 => stats.early_drop = attribute.u32("CTA_STATS_EARLY_DROP")?,
            12 => stats.error = attribute.u32("CTA_STATS_ERROR")?,
            13 => stats.search_restart = attribute.u32("CTA_STATS_SEARCH_RESTART")?,
            14 => stats.clash_resolve = attribute.u32("CTA_STATS_CLASH_RESOLVE")?,
            15 => stats.chain_toolong = attribute.u32("CTA_STATS_CHAIN_TOOLONG")?,
            _ => {}
        }
    }
    Ok(stats)
}
