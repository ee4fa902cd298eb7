//! The machine's id for those who collect from several.

use flowbus_seccomp::MACHINE_ID;
use hmac_sha256::HMAC;

/// The number of flowbus among the programs that ask for such an id.
const PROGRAM: u128 = 0xab5e_d778_3306_4470_ad28_e715_b1f0_e4f7;

/// The machine's id in 32 hexadecimal digits, as `systemd-id128 machine-id -a PROGRAM` derives it from the secret one in
/// /etc/machine-id. `None` where the machine has none.
pub(crate) fn id() -> Option<String> {
    let secret = MACHINE_ID.iter().find_map(|path| std::fs::read_to_string(path).ok())?;
    derived(secret.trim_ascii())
}

fn derived(secret: &str) -> Option<String> {
    let secret = u128::from_str_radix(secret, 16).ok().filter(|_| secret.len() == 32)?;
    let hash = HMAC::mac(PROGRAM.to_be_bytes(), secret.to_be_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    // The bits of a random UUID, version 4.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    Some(format!("{:032x}", u128::from_be_bytes(id)))
}

#[cfg(test)]
mod tests {
    use super::derived;

    #[test]
    fn a_machine_without_an_id_has_none() {
        assert_eq!([derived(""), derived("uninitialized"), derived("12")], [None, None, None]);
        assert!(derived("00112233445566778899aabbccddeeff").is_some());
    }
}
