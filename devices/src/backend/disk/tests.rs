use super::*;
use std::fs;

fn options(path: &Path) -> OpenDisk<'_> {
    OpenDisk {
        path,
        read_only: false,
        create_size: None,
        direct: false,
        lock: true,
    }
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let refused = |path: &Path| RawDisk::open(&options(path)).unwrap_err().to_string();
    assert!(refused(folder.path()).contains("cannot open"));
    assert!(refused(&path).contains("image"));
    fs::write(&path, b"").unwrap();
    assert!(refused(&path).contains("has 0 bytes"));
    fs::write(&path, [0; 513]).unwrap();
    let err = RawDisk::open(&options(&path)).unwrap_err();
    assert!(
        err.remedy().unwrap().starts_with("truncate -s 1024"),
        "{err}"
    );
    let null = refused(Path::new("/dev/null"));
    assert!(null.contains("a character device"), "{null}");
    let fifo = folder.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
    // SAFETY: the pointer is to a string that ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(refused(&fifo).contains("a FIFO"));
}

#[test]
fn a_disk_that_is_written_is_one_vms_and_one_that_is_read_is_everybodys() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, [7; 1024]).unwrap();
    let reader = OpenDisk {
        read_only: true,
        ..options(&path)
    };
    let first = RawDisk::open(&reader).unwrap();
    let second = RawDisk::open(&reader).unwrap();
    let err = RawDisk::open(&options(&path)).unwrap_err();
    assert!(matches!(err, DiskError::Locked { .. }), "{err}");
    drop((first, second));
    let writer = RawDisk::open(&options(&path)).unwrap();
    assert!(matches!(
        RawDisk::open(&reader).unwrap_err(),
        DiskError::Locked { .. }
    ));
    RawDisk::open(&OpenDisk {
        lock: false,
        ..options(&path)
    })
    .unwrap();
    drop(writer);
    RawDisk::open(&options(&path)).unwrap();
}

#[test]
fn a_new_image_is_sparse_and_an_old_one_keeps_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let create = OpenDisk {
        create_size: Some(1 << 30),
        ..options(&path)
    };
    assert_eq!(RawDisk::open(&create).unwrap().size(), 1 << 30);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
    let again = OpenDisk {
        create_size: Some(4096),
        ..options(&path)
    };
    assert_eq!(RawDisk::open(&again).unwrap().size(), 1 << 30);
}

#[test]
fn data_goes_there_and_back_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let disk = RawDisk::open(&OpenDisk {
        create_size: Some(1 << 20),
        ..options(&path)
    })
    .unwrap();
    let mut bytes: Vec<u8> = (0..5000).map(|n| n as u8).collect();
    let expected = bytes.clone();
    // More pieces than one call takes, and of odd sizes.
    let pieces: Vec<_> = bytes.chunks_mut(3).map(VolatileSlice::from).collect();
    disk.write_at(&pieces, 1).unwrap();
    drop(pieces);
    let mut back = vec![0; 5000];
    disk.read_at(&[VolatileSlice::from(&mut back[..])], 1)
        .unwrap();
    assert_eq!(back, expected);
    disk.flush().unwrap();
    disk.write_zeroes(0, 4096, false).unwrap();
    disk.discard(4096, 4096).unwrap();
    disk.read_at(&[VolatileSlice::from(&mut back[..])], 1)
        .unwrap();
    assert!(back.iter().all(|byte| *byte == 0));
    let beyond = disk.read_at(&[VolatileSlice::from(&mut back[..])], (1 << 20) - 1);
    assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn direct_io_works_or_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let content: Vec<u8> = (0..65536_u32).map(|at| (at >> 9) as u8).collect();
    fs::write(&path, &content).unwrap();
    let direct = OpenDisk {
        direct: true,
        ..options(&path)
    };
    let disk = match RawDisk::open(&direct) {
        Ok(disk) => disk,
        Err(err) => {
            assert!(matches!(err, DiskError::NoDirect { .. }), "{err}");
            assert!(err.to_string().contains("image"), "{err}");
            return;
        }
    };
    let mut bytes = vec![0; 3 * 512 + 1];
    disk.read_at(&[VolatileSlice::from(&mut bytes[1..])], 512)
        .unwrap();
    assert_eq!(bytes[1..], content[512..2048]);
    let mut bytes = vec![0xee; 1024 + 1];
    disk.write_at(&[VolatileSlice::from(&mut bytes[1..])], 1536)
        .unwrap();
    disk.write_zeroes(8192, 512, false).unwrap();
    disk.flush().unwrap();
    let mut expected = content;
    expected[1536..2560].fill(0xee);
    expected[8192..8704].fill(0);
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn direct_io_needs_whole_blocks_of_the_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, [0; 512 * 9]).unwrap();
    let file = File::open(&path).unwrap();
    let block = |block| direct::Alignment {
        offset: block,
        memory: 1,
    };
    let err = direct_in(block(4096), &path, file.metadata().unwrap().len()).unwrap_err();
    assert!(err.to_string().contains("has 4608 bytes"), "{err}");
    assert!(err.remedy().unwrap().starts_with("truncate -s 8192"));
    direct_in(block(512), &path, 4608).unwrap();
}
