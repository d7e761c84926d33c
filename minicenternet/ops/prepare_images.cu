// From images to a network input, two launches for a whole batch:  warp,  then  colour and normalise.
//
//   prepare_images_warp     pixels (B, room) uint8, each image at the beginning of its room -> warped (B, h, w, 3) uint8,
//                           and how grey each block's pixels are in the mean
//   prepare_images_colour   y = ((of_image v + of_grey grey + of_mean mean_grey + shift) - mean) / std
//
// The warp is that of data/transforms.py, Pillow's: bilinear, black outside, the outermost pixels repeated for half a
// pixel, rounded down; positions and weights are in double, as there, each product rounded before it is added: a fused
// multiply-add would now and then fall on the other side of a whole number. from_output (B, 2, 3) takes an output pixel's
// centre, at (x + 1/2, y + 1/2), to the image. colours (B, 6): of_image, of_grey, of_mean, and the shift of R, G, B.
#include "block_sum.cuh"
#include "numbers.cuh"

constexpr int THREADS = 256;

// a b + c
__device__ __forceinline__ double multiplied_added(double a, double b, double c) {
  return __dadd_rn(__dmul_rn(a, b), c);
}

__device__ __forceinline__ float grey_of(const float (&rgb)[3]) {
  return 0.299f * rgb[0] + 0.587f * rgb[1] + 0.114f * rgb[2];
}

// Block (tile, image), one thread per output pixel. sizes (B, 2): the images' heights and widths.
__global__ void prepare_images_warp(const unsigned char* __restrict__ pixels, const int* __restrict__ sizes,
                                    const double* __restrict__ from_output, unsigned char* __restrict__ warped,
                                    float* __restrict__ greys, int room, int out_height, int out_width) {
  int image = blockIdx.y, i = blockIdx.x * THREADS + threadIdx.x;
  int height = sizes[2 * image], width = sizes[2 * image + 1];
  const double* m = from_output + 6 * image;
  float rgb[3] = {0, 0, 0};
  if (i < out_height * out_width) {
    double out_x = i % out_width + 0.5, out_y = i / out_width + 0.5;
    double x = __dadd_rn(multiplied_added(m[0], out_x, __dmul_rn(m[1], out_y)), m[2]);
    double y = __dadd_rn(multiplied_added(m[3], out_x, __dmul_rn(m[4], out_y)), m[5]);
    unsigned char* out = warped + 3 * ((long long)image * out_height * out_width + i);
    bool inside = x >= 0 && x < width && y >= 0 && y < height;
    x -= 0.5;
    y -= 0.5;
    int left = (int)floor(x), top = (int)floor(y);
    double across = x - left, down = y - top;
    int x0 = max(left, 0), x1 = min(left + 1, width - 1), y0 = max(top, 0), y1 = min(top + 1, height - 1);
    const unsigned char* in = pixels + (long long)image * room;
    for (int c = 0; c < 3; c++) {
      unsigned char value = 0;
      if (inside) {
        auto at = [&](int row, int column) { return (double)in[3 * ((long long)row * width + column) + c]; };
        double upper = multiplied_added(at(y0, x1) - at(y0, x0), across, at(y0, x0));
        double lower = multiplied_added(at(y1, x1) - at(y1, x0), across, at(y1, x0));
        value = (unsigned char)multiplied_added(lower - upper, down, upper);
      }
      out[c] = value;
      rgb[c] = value / 255.0f;
    }
  }
  float sum = block_sum<THREADS>(grey_of(rgb));
  if (threadIdx.x == 0) greys[image * gridDim.x + blockIdx.x] = sum / (out_height * out_width);
}

// Block (tile, image), one thread per pixel. normalisation (2, 3): mean and std, in the order of y's channels.
template <class T>
__global__ void prepare_images_colour(const unsigned char* __restrict__ warped, const float* __restrict__ greys,
                                      const float* __restrict__ colours, const float* __restrict__ normalisation,
                                      T* __restrict__ y, int pixels, bool bgr) {
  int image = blockIdx.y, i = blockIdx.x * THREADS + threadIdx.x;
  float part = 0;
  for (int tile = threadIdx.x; tile < gridDim.x; tile += THREADS) part += greys[image * gridDim.x + tile];
  float mean_grey = block_sum<THREADS>(part);
  if (i >= pixels) return;
  const float* colour = colours + 6 * image;
  long long at = 3 * ((long long)image * pixels + i);
  float rgb[3] = {warped[at] / 255.0f, warped[at + 1] / 255.0f, warped[at + 2] / 255.0f};
  float common = colour[1] * grey_of(rgb) + colour[2] * mean_grey;
  for (int c = 0; c < 3; c++) {
    float value = colour[0] * rgb[c] + common + colour[3 + c];
    int channel = bgr ? 2 - c : c;
    y[at + channel] = (T)((value - normalisation[channel]) / normalisation[3 + channel]);
  }
}
