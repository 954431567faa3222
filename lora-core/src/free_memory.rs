//! How much memory a card has free, as its driver tells those who ask from outside: Burn does not.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Free bytes of the card behind a device such as `cuda:0`; `None` where nobody can say which card that is,
/// or what it has.
pub(crate) fn free_bytes(device: &str) -> Option<u64> {
    let (backend, index) = device.split_once(':')?;
    let index = index.parse::<usize>().ok();
    match backend {
        "cuda" => nvidia()?.get(index?).copied(),
        "rocm" => amd(Path::new("/sys/class/drm")).get(index?).copied(),
        // Vulkan numbers cards in an order of its own: a lone one is meant.
        "vulkan" | "wgpu" | "webgpu" => {
            let cards = [nvidia().unwrap_or_default(), amd(Path::new("/sys/class/drm"))].concat();
            match cards[..] {
                [only] => Some(only),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Free bytes of NVIDIA's cards, in the driver's order.
fn nvidia() -> Option<Vec<u64>> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=memory.free", "--format=csv,noheader,nounits"]);
    let output = command.output().ok().filter(|output| output.status.success())?;
    parse_mebibytes(&String::from_utf8_lossy(&output.stdout))
}

/// One number of MiB a line.
fn parse_mebibytes(text: &str) -> Option<Vec<u64>> {
    let numbers = text.lines().map(|line| line.trim().parse::<u64>().ok());
    numbers.map(|number| number.and_then(|number| number.checked_mul(1 << 20))).collect()
}

/// Free bytes of AMD's cards, which the kernel tells.
fn amd(folder: &Path) -> Vec<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut cards: Vec<_> = entries.map(|entry| entry.path().join("device")).collect();
    cards.sort();
    let free = cards.iter().filter_map(|card| {
        // Outputs of a card stand there too, and have no memory.
        let total = read(&card.join("mem_info_vram_total"))?;
        Some(total.saturating_sub(read(&card.join("mem_info_vram_used"))?))
    });
    free.collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_the_drivers_say_is_read() {
        assert_eq!(parse_mebibytes("81000\n512\n"), Some(vec![81_000 << 20, 512 << 20]));
        assert_eq!(parse_mebibytes("[N/A]\n"), None);
        let folder = tempfile::tempdir().unwrap();
        assert!(amd(folder.path()).is_empty());
        for (card, total, used) in [("card0", "1000", "400"), ("card1", "50", "70")] {
            let device = folder.path().join(card).join("device");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("mem_info_vram_total"), format!("{total}\n")).unwrap();
            fs::write(device.join("mem_info_vram_used"), format!("{used}\n")).unwrap();
        }
        fs::create_dir_all(folder.path().join("card0-DP-1")).unwrap();
        assert_eq!(amd(folder.path()), [600, 0]);
    }

    #[test]
    fn of_a_processor_nothing_is_said() {
        assert_eq!(free_bytes("cpu"), None);
        assert_eq!(free_bytes("the device"), None);
    }
}
