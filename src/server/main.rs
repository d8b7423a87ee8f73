//! The program: see the library.

mod allocators;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use streamshield::cli;

fn main() {
    allocators::tune();
    if let Err(problem) = streamshield_engine::crash_points::arm_from_environment() {
        eprintln!("{problem}");
        cli::leave(cli::usage_code());
    }
    #[cfg(feature = "mutants")]
    match streamshield_core::mutants::arm_from_environment() {
        Ok(names) => warn_of_mutants(names),
        Err(problem) => {
            eprintln!("{problem}");
            cli::leave(cli::usage_code());
        }
    }
    cli::leave(cli::main())
}

/// Nobody shall take this program for one that may be used.
#[cfg(feature = "mutants")]
fn warn_of_mutants(names: &[&str]) {
    let off = if names.is_empty() { "none is off now".to_string() } else { format!("OFF NOW: {}", names.join(", ")) };
    eprintln!("WARNING: THIS PROGRAM IS A TEST BUILD WHOSE GUARDS CAN BE SWITCHED OFF ({off}). IT LOSES DATA. NEVER USE IT FOR WORK.");
}
