//! Values of single options. The error is what was expected, as it reads after "expected".

use crate::protocol::Mount;

/// Docker's smallest memory limit.
const MIN_MEMORY: u64 = 6 * 1024 * 1024;

/// Go's `strconv.ParseBool`, which the Docker client uses.
pub(super) fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

pub(super) fn non_empty(text: String, expected: &'static str) -> Result<String, &'static str> {
    if text.is_empty() { Err(expected) } else { Ok(text) }
}

pub(super) fn absolute(text: String) -> Result<String, &'static str> {
    if text.starts_with('/') { Ok(text) } else { Err("an absolute path in the container") }
}

/// A DNS label or several: what hostname(7) allows.
pub(super) fn host_name(text: String) -> Result<String, &'static str> {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() <= 64 && text.split('.').all(label_ok) {
        Ok(text)
    } else {
        Err("a host name: at most 64 letters, digits, `-`, `_` and `.`")
    }
}

/// Docker's rule for names of containers, shortened to what can also be looked up.
pub(super) fn container_name(text: String) -> Result<String, &'static str> {
    let ok = (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if ok { Ok(text) } else { Err("a name: at most 64 letters, digits, `-`, `_` and `.`, a letter or digit first") }
}

/// `[SOURCE:]TARGET[:MODES]`.
pub(super) fn volume(text: String) -> Result<Mount, &'static str> {
    const EXPECTED: &str = "[SOURCE:]TARGET[:ro] with an absolute target; SOURCE is an absolute host path or a name";
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, modes) = match parts[..] {
        [target] => (None, target, ""),
        [target, modes @ ("ro" | "rw")] => (None, target, modes),
        [source, target] => (Some(source), target, ""),
        [source, target, modes] => (Some(source), target, modes),
        _ => return Err(EXPECTED),
    };
    let mut read_only = false;
    for mode in modes.split(',').filter(|_| !modes.is_empty()) {
        match mode.to_ascii_lowercase().as_str() {
            "ro" => read_only = true,
            // The default; labels and caching advice for systems that this one is not.
            "rw" | "z" | "cached" | "delegated" | "consistent" => {}
            _ => return Err("[SOURCE:]TARGET[:MODE] with a mode of ro, rw, z or Z"),
        }
    }
    let source_ok = source.is_none_or(|source| {
        source.starts_with('/')
            || (source.starts_with(|c: char| c.is_ascii_alphanumeric())
                && source.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')))
    });
    if !source_ok || !target.starts_with('/') {
        return Err(EXPECTED);
    }
    let (source, target) = (source.map(str::to_owned), target.to_owned());
    Ok(Mount { user_provided_value: Some(text), source, target, read_only })
}

/// Thousandths of a CPU; 0 means no limit. More than three decimals are cut.
pub(super) fn cpus(text: &str) -> Result<Option<u32>, &'static str> {
    const EXPECTED: &str = "a number of CPUs from 0.01 on, such as 1.5, or 0 for no limit";
    let milli = decimal(text, 1000).and_then(|milli| u32::try_from(milli).ok()).ok_or(EXPECTED)?;
    match milli {
        0 if text.bytes().all(|byte| matches!(byte, b'0' | b'.')) => Ok(None),
        0..10 => Err(EXPECTED),
        milli => Ok(Some(milli)),
    }
}

/// Bytes, with an optional unit of powers of 1024; 0 means no limit.
pub(super) fn memory(text: &str) -> Result<Option<u64>, &'static str> {
    const EXPECTED: &str = "an amount of memory of at least 6m, with a unit of b, k, m, g or t, or 0 for no limit";
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "pb" | "pib" => 1 << 50,
        _ => return Err(EXPECTED),
    };
    match decimal(number, factor).ok_or(EXPECTED)? {
        0 => Ok(None),
        1..MIN_MEMORY => Err(EXPECTED),
        bytes => Ok(Some(bytes)),
    }
}

/// Processes and threads; 0 and -1 mean no limit.
pub(super) fn pids(text: &str) -> Result<Option<u64>, &'static str> {
    match text.parse::<i64>() {
        Ok(0 | -1) => Ok(None),
        Ok(limit) => u64::try_from(limit).map(Some).map_err(|_| ()),
        Err(_) => Err(()),
    }
    .map_err(|()| "a number of processes, or -1 for no limit")
}

/// A decimal number times `factor`, rounded down, without floating point. `None` if it is no number or too large.
fn decimal(text: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) || fraction.len() > 18 {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction_value: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let part = u64::try_from(fraction_value * u128::from(factor) / scale).ok()?;
    whole.checked_mul(factor)?.checked_add(part)
}
