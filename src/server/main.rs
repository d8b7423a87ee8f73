//! The program: see the library.

mod allocators;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use streamshield::cli::{self, ExitStatus};

fn main() {
    allocators::tune();
    if let Err(problem) = streamshield_engine::crash_points::arm_from_environment() {
        eprintln!("{problem}");
        ExitStatus::Usage.leave();
    }
    cli::main().leave()
}
