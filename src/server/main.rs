//! The program: see the library.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    if let Err(problem) = streamshield_engine::crash_points::arm_from_environment() {
        eprintln!("{problem}");
        return std::process::ExitCode::from(2);
    }
    streamshield::cli::main()
}
