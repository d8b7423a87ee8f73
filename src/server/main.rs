//! The program: see the library.

mod allocators;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    allocators::tune();
    if let Err(problem) = streamshield_engine::crash_points::arm_from_environment() {
        eprintln!("{problem}");
        return std::process::ExitCode::from(2);
    }
    streamshield::cli::main()
}
