//! Initramfs archives, in the "newc" cpio format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder; its parent must be there.
    pub(crate) fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    /// Adds a file that anybody may read, and root may run where `executable`.
    pub(crate) fn file(&mut self, name: &str, executable: bool, content: &[u8]) {
        self.entry(
            name,
            if executable { 0o100_755 } else { 0o100_644 },
            content,
        );
    }

    /// The archive's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let mut header = [0; 13];
        header[0] = self.entries as usize; // inode number
        header[1] = mode as usize;
        header[4] = 1; // links
        header[6] = content.len();
        header[11] = name.len() + 1;
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_as_the_format_says() {
        let mut archive = Archive::default();
        archive.file("init", true, b"abcde");
        let bytes = archive.finish();
        // Header 110 + "init\0" is 115, padded to 116; then 5 bytes of content, padded to 124.
        assert_eq!(&bytes[..22], b"07070100000001000081ED");
        assert_eq!(&bytes[54..62], b"00000005", "size");
        assert_eq!(&bytes[94..102], b"00000005", "length of the name");
        assert_eq!(&bytes[110..124], b"init\0\0abcde\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
