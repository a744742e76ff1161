//! Random chains; random layers are merged, hydrated and flattened; after each every byte of every disk is looked at.

use super::chain::{Chain, scribble};
use super::setting;
use diffdisk::storage::Storage;
use diffdisk::storage::sim::Rng;
use diffdisk::{Cancel, ErrorKind, NoProgress, merge_into_on};
use std::sync::Arc;

#[test]
fn whatever_is_merged_or_flattened_every_disk_shows_what_it_should() {
    let rounds = setting("DIFFDISK_MERGE_ROUNDS", 40);
    let (mut merges, mut refusals, mut resized, mut cuts, mut copied) = (0, 0, 0, 0, 0);
    for round in 0..rounds {
        let mut rng = Rng::new(0x4D45_5247 + round);
        let depth = 2 + rng.below(3);
        let mut chain = Chain::random(&mut rng, depth);
        chain.check(&format!("round {round}, made"));
        for step in 0..4 {
            let what = format!("round {round}, step {step}");
            let number = 1 + rng.below(chain.layers.len() as u64 - 1) as usize;
            if !chain.layers[number].is_linked {
                continue;
            }
            match rng.below(4) {
                0 | 1 => {
                    let [child, parent] = [number, number - 1].map(|n| Arc::clone(&chain.layers[n].file) as Arc<dyn Storage>);
                    let below = if chain.layers[number - 1].is_linked { chain.below(number - 1) } else { Vec::new() };
                    match merge_into_on(&child, &parent, &below, &NoProgress, &Cancel::new()) {
                        Ok(_) => {
                            merges += 1;
                            resized += u64::from(chain.layers[number].model.len() != chain.layers[number - 1].model.len());
                            chain.layers[number - 1].model = chain.layers[number].model.clone();
                        }
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::InvalidInput, "{what}: {e}");
                            refusals += 1;
                        }
                    }
                }
                2 => {
                    let disk = chain.open(number, true);
                    copied += disk.hydrate(&NoProgress, &Cancel::new()).expect("a hydration").copied;
                    assert_eq!(disk.hydrate(&NoProgress, &Cancel::new()).expect("again").copied, 0, "{what}: nothing is left");
                    disk.close().expect("a close");
                }
                _ => {
                    let disk = chain.open(number, true);
                    let done = disk.flatten(&NoProgress, &Cancel::new()).expect("a cut");
                    assert!(done.is_cut && disk.info().expect("an info").parent.is_none());
                    // It goes on as a disk without a parent, in the same session.
                    let is_leaf = number + 1 == chain.layers.len();
                    if is_leaf {
                        scribble(&disk, &mut chain.layers[number].model, &mut rng, 6);
                    }
                    disk.close().expect("a close");
                    chain.layers[number].is_linked = false;
                    cuts += 1;
                }
            }
            chain.check(&what);
        }
        // The leaf goes on living.
        let leaf = chain.layers.len() - 1;
        let disk = chain.open(leaf, true);
        scribble(&disk, &mut chain.layers[leaf].model, &mut rng, 6);
        disk.close().expect("a close");
        chain.check(&format!("round {round}, written to"));
    }
    println!("{rounds} chains: {merges} merges ({resized} of unequal sizes), {refusals} refusals, {cuts} cuts, {copied} bytes hydrated");
    assert!(merges > rounds / 2 && cuts > rounds / 4 && resized > 0 && copied > 0);
}
