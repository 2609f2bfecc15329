//! A table of images, and numbers as a person reads them.

use ampoule_store::CachedImage;

use super::{SHORT, kind, plain, titles};

/// The images of the cache, a line each.
pub(super) fn of(images: &[CachedImage], now: u64) -> String {
    let mut rows = vec![["DIGEST", "NAME", "SIZE", "CREATED", "USED", "FROM"].map(String::from)];
    for image in images {
        let digest = image.digest.hex()[..SHORT].to_owned();
        let mut names = titles(image).into_iter().map(|name| plain(&name));
        let first = names.next().unwrap_or_else(|| "-".into());
        rows.push([
            digest.clone(),
            first,
            size(image.size),
            ago(image.created, now),
            ago(image.last_used, now),
            kind(image).into(),
        ]);
        // Each name has a line, as docker image ls has it.
        rows.extend(names.map(|name| {
            let mut row: [String; 6] = Default::default();
            row[0].clone_from(&digest);
            row[1] = name;
            row
        }));
    }
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Bytes in powers of 1000, with three digits.
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            let digits = if unit == "B" || value >= 99.95 { 0 } else { 1 };
            return format!("{value:.digits$} {unit}");
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// How long ago that was.
pub(super) fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then);
    let (count, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1500), "1.5 kB");
        assert_eq!(size(123_456_789), "123 MB");
        assert_eq!(size(999_999_999), "1.0 GB");
        assert_eq!(size(u64::MAX), "18446744.1 TB");
        assert_eq!(ago(100, 159), "just now");
        assert_eq!(ago(100, 160), "1 minute ago");
        assert_eq!(ago(0, 7200), "2 hours ago");
        assert_eq!(ago(0, 90_000), "1 day ago");
        assert_eq!(ago(5, 0), "just now");
    }
}
